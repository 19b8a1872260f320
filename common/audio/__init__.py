"""Sound: any container in (`io`), spectral features (`features`), speech detection (`vad`)."""
