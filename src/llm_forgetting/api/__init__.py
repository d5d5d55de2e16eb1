"""The command line as objects: experiments and studies that run, and what they leave behind as values, frames and pages."""
