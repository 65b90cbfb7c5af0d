checkpoint_aliases: dict = {}
