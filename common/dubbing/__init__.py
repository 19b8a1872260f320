"""What every dub of a video needs: the pictures, the speech, the passes over them, and the report."""
