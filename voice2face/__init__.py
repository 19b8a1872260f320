"""A voice goes in, a portrait comes out (papers 1 and 2)."""
