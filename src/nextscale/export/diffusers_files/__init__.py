"""Files that go into a folder for diffusers as they are."""
