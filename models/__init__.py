"""The models and feed-forward kinds of fastffn: `paddle.nn` only, importable on their own."""
