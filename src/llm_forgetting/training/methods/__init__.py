"""Methods against forgetting, one file each: a file here that sets `METHOD` is a name of `training.methods`."""
