"""Sources that processes of their own read: what is decoded there costs this process's threads nothing."""
