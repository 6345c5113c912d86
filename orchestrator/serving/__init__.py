"""What a trained trial is good for: encoding images, searching a gallery, export, a demonstration."""
