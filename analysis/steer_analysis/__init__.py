"""Floor 3: everything computed from run directories: evaluation, statistics, leaderboard, report.

Importing it loads neither torch nor vLLM; only :func:`steer_analysis.generate.open_engine` does, when it is called.
"""
