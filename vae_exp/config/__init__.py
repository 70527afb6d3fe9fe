"""What a configuration may say, and what becomes of it. All but `build` answers without importing torch."""
