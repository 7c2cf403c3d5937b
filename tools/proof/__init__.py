"""The proof on real parts: a chain of services on real servers, killed at named points and at random moments.

    make proof [ROUNDS=n] [STORES=sqlite,postgres] [POINTS=after-commit,random] [SEED=bug]

Read `rounds.py` first: what is done. `judge.py` says what it is measured by, `stores.py` on what it runs.
"""
