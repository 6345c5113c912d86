"""What a finished study looks like: tables to send, and one page with it all."""
