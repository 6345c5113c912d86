"""The methods: registry, interface, networks, hash centers, losses, one file a method."""
