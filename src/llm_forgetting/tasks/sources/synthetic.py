"""Generated tasks that interfere, for tests and a first look."""

from llm_forgetting.tasks.sources.source import SourceKind
from llm_forgetting.tasks.synthetic import SyntheticSource

KIND = SourceKind(lambda settings: SyntheticSource())
