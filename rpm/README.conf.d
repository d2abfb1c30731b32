Settings in files of this directory named *.yaml are read after ../config.yaml, in the order of their names; the last
word on a setting counts. They are written as in config.yaml, for example

    policy:
      dry_run: true

A file is refused unless it is owned by root and writable by nobody else, and so are the directories above it.
state_dir belongs in config.yaml, where the hooks look for it. `gpu-nodeagent config check` says what is wrong.
