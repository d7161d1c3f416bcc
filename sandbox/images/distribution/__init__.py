"""Registries: what the OCI distribution specification 1.1 says, from both sides of a pull and a push.

::

    references     name → canonical name (aliases)  →  endpoints: mirrors first, then the registry itself
    client         one repository at one endpoint: manifests, blobs, uploads; retries
    auth           challenge → Basic or Bearer, with what credentials (docker's and podman's files) has
    transport      connections; addresses, tls and proxies: which are made
    download       one blob into the store: resumed, verified, once however many ask
    pull, push     images
    pins           sandbox.lock

The protocol is spoken over the standard library's http.client. Nothing in here trusts a registry: what it
sends is counted and hashed by us before anything else looks at it, apart from a layer that is unpacked while
it arrives, which nobody sees before it has proved right.
"""
