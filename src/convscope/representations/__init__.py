"""What a network makes of pictures: strongest pictures, projections, vectors, answers, probes."""
