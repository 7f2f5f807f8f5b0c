"""The page of the admin port: who may see it, its JSON API, and the data of its views."""
