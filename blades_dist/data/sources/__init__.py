"""Collections of photographs: folders, archives, published data sets and shard sets behind one interface.

``factory.open_source`` makes the ``base.Source`` of a path or URI; ``docs/sources.md`` describes each.
"""
