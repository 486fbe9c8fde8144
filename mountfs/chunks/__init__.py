"""Bytes: where the contents of files live.

A slice (at most 4 MiB, immutable, named by a number that is never used twice) is stored as one
needle in a volume, an append-only file.  Who wants bytes back names volume, slice and range, and
gets verified bytes or an error: never wrong ones.

`needle` and `volume` decide (the format, and what is to be concluded from what a file holds);
`index` remembers where a needle is; `disk` does it on one disk, for threads; `client` is its face
for tasks, and `base` says what a client of any kind promises.

A chunkserver has several disks (`disks`; `disk_identity` keeps them from being mixed up).
`service` is what others see of it, in the words of `protocol`; `fence` knows which leader to obey,
and `copying` gets from others what is not here.

Where a slice has copies, `hedge` decides who is asked for it, and when another one is too; `health`
says which servers are well, and `latency` how long they take.
"""
