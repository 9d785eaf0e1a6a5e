"""What operators see: metrics and logs. Adapters that listen to events; nothing calls them for an answer."""
