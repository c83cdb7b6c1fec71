"""Of the main job."""
