"""Arms of a plan trained and compared at equal tokens and equal seconds: `fastffn compare`."""
