"""Stand-ins for tools of other people that a test cannot use: systemd, docker, kubectl, helm, az, and what needs root.

They are programs of these names, put on the PATH of a script (`World.tools`). Each takes the arguments of the real tool
as far as the documentation uses them, refuses any other, and **checks what it is given**: that files, units, services,
charts, values and parameters are there and fit together, and that users, images, namespaces and secrets were made
before they are used. What they would have done they note in `state.json`, for those that come after. Nothing is
installed, and no container is started; `aerodrome` commands, also those within a container, are really run, with a data
directory of the test.

The paths /opt, /etc, /var and /srv of a script lie in a directory of the test, the *root*.
"""
