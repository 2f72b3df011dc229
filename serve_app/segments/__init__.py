"""Segments of the whole population: evaluated over columns into bitmaps, published as a set, looked up per request.

::

    bitmaps      boolean columns, roaring bitmaps, planes of bits            pure
    population   users and their attributes as columns                       pure
    events       a day's events as columns; counts and last times            pure
    evaluate     the tree over columns, with the count at every node         pure
    merge        several policies' segments, each definition once            pure
    reading      segments from a file
    source       population and item categories from catalogue and ledger
    days         the log's events as one memory-mapped file a day, kept up to date
    store        membership sets: publish, load
    shelf        the set in force, followed while serving; the look-up
    refresh      all of it, for the policies in force; __main__ is one refresh in a process of its own
    periodic     when a running server starts one

Row r of every bitmap is the r-th user of the set's sorted `users`.
"""
