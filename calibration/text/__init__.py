"""Texts as samples: tables of texts and labels, read once and tokenised when they are asked for."""
