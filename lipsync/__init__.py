"""A face video and speech go in, the same video with lips that follow the speech comes out (paper 3)."""
