"""One spec per benchmark."""
