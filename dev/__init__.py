"""What maintainers run from the repository and nobody installs: images of the pages for the README, measured speed."""
