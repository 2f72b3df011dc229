"""Lists of items, widgets and reviews under other policies: the logged candidates, ranked again by the serving core.

Lists have no history: what a user was shown before is in the request (`recents`, `excluded`). So a surface needs no
waves; a bucket group is read, compared with what was served, ranked under every target and added up.
"""
