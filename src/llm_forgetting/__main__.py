"""`python -m llm_forgetting`: the command line."""

from llm_forgetting.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
