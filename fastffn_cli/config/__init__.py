"""YAML files and `-o` overrides become one validated, frozen `Config`."""
