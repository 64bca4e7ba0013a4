"""Files and cameras in, frames out."""
