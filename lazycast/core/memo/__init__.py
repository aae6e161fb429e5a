"""What was cast before is neither sent nor made again: `memo=Memo(nbytes)`.

`book` is the root's: which payloads have a value that every rank keeps, and which value goes when there is no room.
`store` is every rank's: the values, encoded, each under the root's number for it.
"""
