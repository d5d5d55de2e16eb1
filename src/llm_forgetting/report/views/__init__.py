"""Views of records that figures and pages share: arrays, names and captions, without matplotlib."""
