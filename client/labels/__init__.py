"""From label objects to masks on an image's grid."""
