"""HTTP: routes, schemas, problem details, middleware. Everything a client sees is decided here."""
