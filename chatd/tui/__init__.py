"""`chatd chat`: a terminal to chat in. On top of `chatd.client`, below the command line.

    SDK events ──► model ──► rows ──► log_view     what is shown, and how
    keys, mouse ─► app ──► controller ──► SDK      what the person wants

- `text` makes what others wrote harmless. `model` is what is known; `rows` writes it as lines.
  These three are pure: no loop, no clock, no widget.
- `controller` calls the SDK, by its public names alone, and keeps the model.
- `app`, `log_view`, `conversation_list`, `composer` and `dialogs` are textual's widgets.
- `lines` is the same chat without a screen, for pipes. It needs no textual.

textual is an extra (`chatd[tui]`): `chatd serve` never imports it (docs/decisions/0050).
"""
