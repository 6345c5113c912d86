"""What a finished study looks like: tables in the formats people send, and one page with it all."""
