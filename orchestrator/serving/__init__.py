"""What a trained trial is good for: encode, search, export, show."""
