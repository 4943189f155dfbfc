"""The conformance kit of `chatd.v1`: it tells whether a server or a client keeps the protocol.

    chatd conformance URL            plays clients against a server      (against_server)
    chatd conformance --client CMD   plays the server against a client   (against_client)

    vectors/          the data: what is sent, and what must be answered   docs/conformance.md
    command, report   what is run, and the outcome as text, JSON and JUnit XML
    launch, tokens    where the server is, and who its users are
    adapter           the line protocol to a client's program
    walk              seeded walks: walk_device, walk_judge, log_model; against_rules runs them
    client_walk       seeded walks for a client: played_server, played_link, played_log
    schemas           the frames of a server, held to frames.schema.json
    values            what stands for a value in a vector; matching       pure
    vectors           reads the data, and says what each vector needs     pure
    server_vectors    runs one vector against a server
    client_vectors    runs one vector against a client

The kit knows nothing of chatd but its errors, and it does not use the SDK: it is another
implementation of the protocol, by `websockets` and JSON alone. So a fault that the server and the
SDK share is still found, and any other server or client can be tried by it.
"""
