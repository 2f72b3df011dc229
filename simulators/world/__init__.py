"""A synthetic shop whose truth is known: people, products, campaigns, and how they respond.

::

    settings -> model (population, items, campaigns, widgets: what never changes)
    state     fatigue, engagement, satiation, consents, recents: what a day changes
    responses true probabilities and potential outcomes: pure functions of model, state and action
    scores    the declared noisy model that stands in for trained heads
    shopping  sessions, slates (core selector), clicks, carts, orders
    sends     candidates -> `serve_app.decide` -> reactions
    driver    World.run(policy): the closed loop, a `Day` at a time, under any policy
    record, truth, shelf, publish    a run as catalogue + log, and the truth kept aside

All randomness is keyed (`draws`), so runs of one world under different policies share their noise.
"""
