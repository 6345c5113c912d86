"""Where stages run: resources and Ray, local or remote."""
