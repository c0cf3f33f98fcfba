"""The heart beat: `pacer` says when the next sync may run (pure), `loop` runs it and reports, `writer` says who may write at all."""
