"""The wire protocol of tsupervise: types, codec, handshake. No I/O, no clock, no trio."""
