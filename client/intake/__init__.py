"""From a source of images to verdicts and cases."""
