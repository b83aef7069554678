"""Family ``relay``: shows the bytes of relay channels, whose format only their module knows."""
