"""Variants and families into the registries that teams use, and back."""
