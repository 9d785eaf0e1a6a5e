"""Who may ask, and how much. Pure of HTTP: `app.api.admission` speaks for it."""
