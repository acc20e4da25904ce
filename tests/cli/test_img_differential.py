"""``blockio img`` beside the real qemu-img: the same command lines on the same files in separate folders.

Standard output, standard error, exit status and the files afterwards must be equal. Left out of the comparison is only
where clusters lie in a qcow2 file and how much of the storage a new one takes, which is the allocator's business: an
image must hold the same disk, say the same about itself and be as clean.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import Said, run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


USAGE = """
foo
--foo
-z
-T
-T foo info a.raw
-T 'foo*,file=trace.log' map a.raw
-T file=sub/nope/trace.log map a.raw
-T enable=foo,events=text.raw info nope
-T events=nope map a.raw
-T foo,enable=bar,,baz map a.raw
-T foo,bar map a.raw
--trace foo=1 map a.raw
--trace= map a.raw
''
create
info
check
compare a.raw
compare a.raw b.raw c.raw
map
resize
resize a.raw
convert
convert a.raw
create --foo
create -z
create -f
info -qz a.qcow2
info -zU a.qcow2
info a.qcow2 -zU
info -U a.qcow2 -zU
info -Uf
info -U --zork=1 a.qcow2
info --force-share=1 a.qcow2
info --o=json a.qcow2
info --outp=json a.qcow2
info --output
info --output=xml a.qcow2
check --output=xml a.qcow2
map --output=xml a.qcow2
info -- -x
info -
info a.qcow2 a.raw
info -q a.qcow2
info blkdebug::a.qcow2
info --output=json blkverify:a.raw:a.qcow2
map -q a.qcow2
check -p a.qcow2
resize -U a.qcow2 1M
resize -h
create --format=qcow2 x 1M
convert --format=qcow2 x y
map --format=qcow2 a.qcow2
check --format=qcow2 a.qcow2
check --repair=leaks a.qcow2
check a.qcow2 b
check -r foo a.qcow2
check -r
check -T foo a.qcow2
check -T none a.qcow2
compare -T foo a.raw b.raw
compare -z a.raw b.raw
info --object secret,id=s,data=abc a.qcow2
info --object secret,id=s,data=abc,foo=1 a.qcow2
info --object secret,id=s a.qcow2
info --object secret,id=s,file=/nope a.qcow2
info --object secret a.qcow2
info --object foo,id=s a.qcow2
info --object help a.qcow2
resize --object foo a.qcow2 1M
compare --strict a.raw a.raw
"""

CREATE = """
create x.raw
create -f qcow2 x.qcow2
create -f qcow2 x.qcow2 1x
create -f qcow2 x.qcow2 -- -1
create -f qcow2 x.qcow2 1M 2M
create -f foo x.qcow2 1M
create -f qcow2 x.qcow2 64M
create -q -f qcow2 x.qcow2 64M
create -f qcow2 x.qcow2 99999999999999999999
create -f qcow2 x.qcow2 16E
create -f qcow2 x.qcow2 7E
create -f qcow2 x.qcow2 1000
create -f qcow2 x.qcow2 0
create -f qcow2 x.qcow2 +1M
create -f qcow2 x.qcow2 ' 1M'
create -f qcow2 x.qcow2 '1M '
create -f qcow2 x.qcow2 ''
create -f qcow2 x.qcow2 1.5
create -f qcow2 x.qcow2 1e3
create -f qcow2 x.qcow2 1MB
create -f qcow2 x.qcow2 0x10k
create -f qcow2 x.qcow2 0x1000
create -f qcow2 x.qcow2 100b
create -f qcow2 x.qcow2 1T
create -f qcow2 -o cluster_size=512 x.qcow2 1T
create -f qcow2 -b a.qcow2 x.qcow2
create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2
create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2 128M
create -f qcow2 -b a.qcow2 -F raw x.qcow2
create -f qcow2 -b a.qcow2 -F foo x.qcow2 1M
create -f qcow2 -b nope.qcow2 -F qcow2 x.qcow2
create -f qcow2 -b nope.qcow2 -F qcow2 x.qcow2 1M
create -f qcow2 -b broken.qcow2 -F qcow2 x.qcow2
create -f qcow2 -b text.raw -F qcow2 x.qcow2
create -f qcow2 -b d.raw -F raw x.qcow2
create -f qcow2 -b odd.raw -F raw x.qcow2
create -f qcow2 -u -b nope.qcow2 -F qcow2 x.qcow2
create -f qcow2 -u -b nope.qcow2 -F qcow2 x.qcow2 1M
create -f qcow2 -u -b nope.qcow2 x.qcow2 1M
create -f qcow2 -b '' x.qcow2 1M
create -f qcow2 -b x.qcow2 -F qcow2 x.qcow2 1M
create -f qcow2 -F raw x.qcow2 1M
create -f qcow2 -F qcow2 -b foo:bar x.qcow2
create -f qcow2 -F qcow2 -b base.qcow2 sub/x.qcow2
create -f qcow2 -F qcow2 -b nope.qcow2 sub/x.qcow2
create -f qcow2 -F raw -b null-co:// x.qcow2
create -f raw -b a.qcow2 -F qcow2 x.raw 1M
create -f raw -F qcow2 x.raw 1M
create -f raw x.raw 1000
create x.raw 1.5k
create -f raw a.raw 4k
create -f qcow2 a.raw 1M
create -f qcow2 -o cluster_size=3k x.qcow2 1M
create -f qcow2 -o cluster_size=4M x.qcow2 1M
create -f qcow2 -o cluster_size=2M x.qcow2 1M
create -f qcow2 -o cluster_size=512 x.qcow2 1M
create -f qcow2 -o cluster_size x.qcow2 1M
create -f qcow2 -o cluster_size= x.qcow2 1M
create -f qcow2 -o cluster_size=-1 x.qcow2 1M
create -f qcow2 -o cluster_size=99999999999999999999 x.qcow2 1M
create -f qcow2 -o foo=1 x.qcow2 1M
create -f qcow2 -o no x.qcow2 1M
create -f qcow2 -o =x x.qcow2 1M
create -f qcow2 -o compat=0.10 x.qcow2 1M
create -f qcow2 -o compat=v2 x.qcow2 1M
create -f qcow2 -o compat=v3 x.qcow2 1M
create -f qcow2 -o compat=1.1 x.qcow2 1M
create -f qcow2 -o compat=foo x.qcow2 1M
create -f qcow2 -o compat=0.10,lazy_refcounts=on x.qcow2 1M
create -f qcow2 -o compat=0.10,refcount_bits=8 x.qcow2 1M
create -f qcow2 -o compat=0.10,compression_type=zstd x.qcow2 1M
create -f qcow2 -o compat=v3,preallocation=metadata,lazy_refcounts=on,refcount_bits=1,cluster_size=512 x.qcow2 1M
create -f qcow2 -o preallocation=off x.qcow2 1M
create -f qcow2 -o preallocation=metadata x.qcow2 1M
create -f qcow2 -o preallocation=falloc x.qcow2 1M
create -f qcow2 -o preallocation=full x.qcow2 1M
create -f qcow2 -o preallocation=foo x.qcow2 1M
create -f qcow2 -b a.qcow2 -F qcow2 -o preallocation=metadata x.qcow2
create -f qcow2 -o lazy_refcounts=foo x.qcow2 1M
create -f qcow2 -o lazy_refcounts x.qcow2 1M
create -f qcow2 -o lazy_refcounts=yes x.qcow2 1M
create -f qcow2 -o nolazy_refcounts x.qcow2 1M
create -f qcow2 -o refcount_bits=64 x.qcow2 1M
create -f qcow2 -o refcount_bits=3 x.qcow2 1M
create -f qcow2 -o refcount_bits=0x10 x.qcow2 1M
create -f qcow2 -o refcount_bits=16k x.qcow2 1M
create -f qcow2 -o refcount_bits=-1 x.qcow2 1M
create -f qcow2 -o refcount_bits= x.qcow2 1M
create -f qcow2 -o refcount_bits=99999999999999999999 x.qcow2 1M
create -f qcow2 -o compression_type=zstd x.qcow2 1M
create -f qcow2 -o compression_type=foo x.qcow2 1M
create -f qcow2 -o size=2M x.qcow2
create -f qcow2 -o size=2M x.qcow2 1M
create -f qcow2 -o size=1x x.qcow2
create -f qcow2 -o size=1M,,lazy_refcounts=on x.qcow2
create -f qcow2 -o lazy_refcounts=on -o cluster_size=128k x.qcow2 1M
create -f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 x.qcow2
create -f qcow2 -o backing_file=a.qcow2 -b a.qcow2 -F qcow2 x.qcow2
create -f qcow2 -o nocow=on,extent_size_hint=1M x.qcow2 1M
create -f qcow2 -o encryption=off x.qcow2 1M
create -f qcow2 -o '' x.qcow2 1M
create -f qcow2 -o , x.qcow2 1M
create -f qcow2 -o a, x.qcow2 1M
create -f qcow2 -o ,a x.qcow2 1M
create -f qcow2 -o a,,b x.qcow2 1M
create -f qcow2 -o help
create -f qcow2 -o help x.qcow2 1M
create -f qcow2 -o '?' x.qcow2 1M
create -f qcow2 -o cluster_size=64k,help x.qcow2
create -o help
create -f raw -o help x.raw
create -f file -o help x
create -f foo -o help
create -f null-co -o help
create -f raw -o help foo:x
create -f raw -o help null-co://
create -f host_device -o help
create -f null-co x 1M
create -f raw null-co:// 1M
create -f file x 1000
create -f raw -o preallocation=full x.raw 1M
create -f raw -o preallocation=falloc x.raw 1M
create -f raw -o preallocation=foo x.raw 1M
create -f raw -o extent_size_hint=64k,nocow=on x.raw 1M
create -f raw -o cluster_size=64k x.raw 1M
create -f qcow2 "a b'c.qcow2" 1M
create -f qcow2 a,b.qcow2 1M
create -f qcow2 nodir/x.qcow2 1M
create -f raw nodir/x.raw 1M
create -f raw sub 1M
create -f raw /dev/null 1M
create -f qcow2 foo:bar 1M
create -f qcow2 file:x.qcow2 1M
create -f qcow2 file:nodir/x.qcow2 1M
create -f qcow2 'json:{"driver":"file","filename":"x"}' 1M
create -f qcow2 a,b.qcow2 1M ; create -f qcow2 -b a,b.qcow2 -F qcow2 y.qcow2 ; map --output=json y.qcow2
"""

INFO = """
info nope
info -f raw a.qcow2
info -f qcow2 d.raw
info -f foo d.raw
info a.qcow2
info --output=json a.qcow2
info --output=human a.qcow2
info --backing-chain a.qcow2
info --backing-chain --output=json a.qcow2
info ov.qcow2
info --output=json ov.qcow2
info --backing-chain ov.qcow2
info --backing-chain --output=json ov.qcow2
info v2.qcow2
info --output=json v2.qcow2
info v3.qcow2
info --output=json v3.qcow2
info broken.qcow2
info --output=json broken.qcow2
info --backing-chain broken.qcow2
info loop.qcow2
info --backing-chain loop.qcow2
info --backing-chain --output=json loop2.qcow2
info sub/top.qcow2
info --output=json sub/top.qcow2
info --backing-chain sub/top.qcow2
info d.raw
info --output=json d.raw
info odd.raw
info none.raw
info sparse.raw
info -U a.qcow2
info --image-opts driver=qcow2,file.filename=a.qcow2
info --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2
info --image-opts driver=qcow2,file.filename=nope
info --image-opts a.qcow2
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}'
info --output=json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}'
info null-co://
info sub
info foo:bar
info file:a.qcow2
info ''
info short.qcow2
"""

CHECK = """
check nope
check d.raw
check -f raw a.qcow2
check --output=json -f raw a.qcow2
check a.qcow2
check -q a.qcow2
check --output=json a.qcow2
check -q --output=json a.qcow2
check -U a.qcow2
check empty.qcow2
check --output=json empty.qcow2
check zero.qcow2
check --output=json zero.qcow2
check ov.qcow2
check small.qcow2
check meta.qcow2
check packed.qcow2
check --output=json packed.qcow2
check -r leaks a.qcow2
check -r all a.qcow2
check -r all -U a.qcow2
check -r all d.raw
check leak.qcow2
check -q leak.qcow2
check --output=json leak.qcow2
check -r leaks leak.qcow2
check -r all leak.qcow2
check -q -r leaks leak.qcow2
check -r leaks --output=json leak.qcow2
check corrupt.qcow2
check -q corrupt.qcow2
check --output=json corrupt.qcow2
check -r leaks corrupt.qcow2
check double.qcow2
check --output=json double.qcow2
check -r leaks double.qcow2
check -r all double.qcow2
check both.qcow2
check --output=json both.qcow2
check -r leaks both.qcow2
check --image-opts driver=qcow2,file.filename=a.qcow2
check null-co://
check short.qcow2
check broken.qcow2
"""

COMPARE = """
compare a.qcow2 nope
compare nope a.qcow2
compare a.qcow2 a.raw
compare -q a.qcow2 a.raw
compare -s a.qcow2 a.raw
compare -p a.qcow2 a.raw
compare -p -q a.qcow2 a.raw
compare -f qcow2 -F raw a.qcow2 a.raw
compare -f raw -F raw a.qcow2 a.raw
compare -f qcow2 a.raw a.raw
compare -F qcow2 a.raw a.raw
compare -f foo a.raw a.raw
compare -F foo a.raw a.raw
compare a.raw b.raw
compare -q a.raw b.raw
compare -s a.raw b.raw
compare -p a.raw b.raw
compare a.raw long.raw
compare -s a.raw long.raw
compare -s -p a.raw long.raw
compare -q a.raw long.raw
compare -p a.raw long.raw
compare a.raw tail.raw
compare tail.raw a.raw
compare -q tail.raw a.raw
compare a.qcow2 sparse.raw
compare a.qcow2 empty.qcow2
compare -s a.qcow2 a.qcow2
compare a.qcow2 ov.qcow2
compare -s a.qcow2 ov.qcow2
compare a.qcow2 packed.qcow2
compare odd.raw none.raw
compare none.raw none.raw
compare -T none a.raw a.raw
compare -U a.qcow2 a.qcow2
compare -p nope a.qcow2
compare --image-opts driver=raw,file.filename=a.raw driver=raw,file.filename=b.raw
compare --image-opts -f raw driver=raw,file.filename=a.raw driver=raw,file.filename=b.raw
compare broken.qcow2 a.qcow2
"""

MAP = """
map nope
map a.qcow2
map --output=json a.qcow2
map ov.qcow2
map --output=json ov.qcow2
map --output=json longer.qcow2
map longer.qcow2
map d.raw
map --output=json d.raw
map sparse.raw
map --output=json sparse.raw
map odd.raw
map --output=json odd.raw
map none.raw
map --output=json none.raw
map empty.qcow2
map --output=json empty.qcow2
map zero.qcow2
map --output=json zero.qcow2
map --output=json meta.qcow2
map meta.qcow2
map --output=json falloc.qcow2
map packed.qcow2
map --output=json packed.qcow2
map -f raw a.qcow2
map -f qcow2 d.raw
map -s 256k ov.qcow2
map -s 256k -l 2M ov.qcow2
map -s 256k -l 2M --output=json ov.qcow2
map -s 300001 -l 100 --output=json ov.qcow2
map --start-offset=1M --max-length=100 --output=json ov.qcow2
map -s 1x ov.qcow2
map -l 1x ov.qcow2
map -s -1 ov.qcow2
map -s 99E ov.qcow2
map -s 100M ov.qcow2
map -s 100M --output=json ov.qcow2
map -U a.qcow2
map --image-opts driver=qcow2,file.filename=ov.qcow2
map null-co://
map --output=json null-co://
map broken.qcow2
map sub/top.qcow2
"""

RESIZE = """
resize nope 1M
resize a.qcow2 +1M
resize a.qcow2 -1M
resize a.qcow2 -- -1M
resize --shrink a.qcow2 -1M
resize --shrink a.qcow2 -100G
resize a.qcow2 -100G
resize a.qcow2 1x
resize a.qcow2 +
resize a.qcow2 ++1
resize a.qcow2 +0
resize a.qcow2 16M
resize -q a.qcow2 20M
resize a.qcow2 100000000
resize a.qcow2 20M b
resize a.qcow2 b 20M
resize d.raw +1
resize -f raw d.raw +1
resize -f raw d.raw +511
resize -f raw d.raw 1000
resize -f raw --shrink d.raw 1000
resize --shrink d.raw 2000
resize --preallocation=foo a.qcow2 20M
resize --preallocation=metadata a.qcow2 20M
resize --preallocation=falloc a.qcow2 20M
resize --preallocation=full a.qcow2 20M
resize --preallocation=off a.qcow2 +1M
resize --preallocation=full --shrink a.qcow2 -1M
resize --preallocation=metadata -f raw d.raw +1M
resize --preallocation=full -f raw d.raw +1M
resize --preallocation=falloc -f raw d.raw +1M
resize --preallocation a.qcow2 +1M
resize -f foo a.qcow2 +1M
resize -f qcow2 d.raw +1M
resize a.qcow2 8E
resize a.qcow2 7E
resize a.qcow2 99999999999999999999
resize a.qcow2 0
resize --shrink a.qcow2 0
resize --image-opts driver=qcow2,file.filename=a.qcow2 +1M
resize --image-opts a.qcow2 +1M
resize a.qcow2 1.5M
resize a.qcow2 0x2000000
resize a.qcow2 2e6
resize a.qcow2 ' 20M'
resize a.qcow2 ''
resize sub 1M
resize -f raw /dev/null 1M
resize v2.qcow2 2M
resize ov.qcow2 20M ; map --output=json ov.qcow2
resize longer.qcow2 3M ; map --output=json longer.qcow2
"""

CONVERT = """
convert nope o.raw
convert -O raw a.qcow2 file:odd:name.raw
convert a.qcow2 o.raw
convert -q -p a.qcow2 o.raw
convert -p nope o.raw
convert -O foo a.qcow2 o.raw
convert -f foo a.qcow2 o.raw
convert -f qcow2 d.raw o.raw
convert -O qcow2 d.raw o.qcow2
convert -O qcow2 a.qcow2 o.qcow2
convert -O qcow2 ov.qcow2 o.qcow2
convert -O qcow2 sparse.raw o.qcow2
convert -O qcow2 odd.raw o.qcow2
convert -O qcow2 small.qcow2 o.qcow2
convert packed.qcow2 o.raw
convert odd.raw o.raw
convert none.raw o.raw
convert -O qcow2 none.raw o.qcow2
convert -p none.raw o.raw
convert a.qcow2 a.raw
convert -O qcow2 longer.qcow2 o.qcow2
convert -O qcow2 -o compat=0.10,cluster_size=4k a.qcow2 o.qcow2
convert -O qcow2 -o preallocation=metadata d.raw o.qcow2
convert -O qcow2 -o preallocation=full d.raw o.qcow2
convert -O raw -c a.qcow2 o.raw
convert -O qcow2 -C a.raw o.qcow2
convert -C a.raw o.raw
convert -O qcow2 -C -S 4k a.qcow2 o.qcow2
convert -O qcow2 -C -c a.qcow2 o.qcow2
convert -S foo a.qcow2 o.raw
convert -S 4k a.qcow2 o.raw
convert -S 1 a.qcow2 o.raw
convert -S 0 a.qcow2 o.raw
convert -S 0 -O qcow2 a.qcow2 o.qcow2
convert -S 3k a.qcow2 o.raw
convert -S 3G a.qcow2 o.raw
convert -S 1M a.qcow2 o.raw
convert -m 0 a.qcow2 o.raw
convert -m 17 a.qcow2 o.raw
convert -m foo a.qcow2 o.raw
convert -m 1 a.qcow2 o.raw
convert -m 16 -W a.qcow2 o.raw
convert -W -O qcow2 a.qcow2 o.qcow2
convert -n a.qcow2 nope.raw
convert -n a.qcow2 d.raw
convert -n a.qcow2 sparse.raw
convert -n -O qcow2 a.raw empty.qcow2
convert -n -O qcow2 d.raw a.qcow2
convert -n --target-is-zero -O qcow2 a.raw empty.qcow2
convert -n -o size=1M a.qcow2 nope.raw
convert -t writeback a.qcow2 o.raw
convert -t none a.qcow2 o.raw
convert -t directsync a.qcow2 o.raw
convert -T foo a.qcow2 o.raw
convert -T none a.qcow2 o.raw
convert -p -T foo a.qcow2 o.raw
convert -o foo=1 -O qcow2 a.qcow2 o.qcow2
convert -o foo=1 -O raw a.qcow2 o.raw
convert -o '' -O raw a.qcow2 o.raw
convert -o size=1M -O qcow2 a.qcow2 o.qcow2
convert -o size=128M -O qcow2 a.qcow2 o.qcow2
convert -o help -O qcow2 a.qcow2 o.qcow2
convert -o help -O qcow2
convert -o help
convert -O foo -o help
convert -O qcow2 -B a.qcow2 ov.qcow2 o.qcow2
convert -O qcow2 -B a.qcow2 -F qcow2 ov.qcow2 o.qcow2
convert -O qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 ov.qcow2 o.qcow2
convert -O qcow2 -o backing_file=a.qcow2 ov.qcow2 o.qcow2
convert -O qcow2 -B d.raw -F raw longer.qcow2 o.qcow2
convert -O qcow2 -B d.raw -F raw ov.qcow2 o.qcow2
convert -O raw -B a.qcow2 -F qcow2 ov.qcow2 o.raw
convert -O raw -F qcow2 ov.qcow2 o.raw
convert -O qcow2 -B a.qcow2 -F qcow2 d.raw odd.raw o.qcow2
convert d.raw odd.raw cat.raw
convert -O qcow2 d.raw a.qcow2 odd.raw cat.qcow2
convert -l foo a.qcow2 o.raw
convert -l foo d.raw o.raw
convert --salvage a.qcow2 o.raw
convert --salvage -C a.qcow2 o.raw
convert --bitmaps -O qcow2 a.qcow2 o.qcow2
convert --skip-broken-bitmaps -O qcow2 a.qcow2 o.qcow2
convert --target-is-zero -O qcow2 a.qcow2 o.qcow2
convert --target-image-opts a.qcow2 driver=raw,file.filename=o.raw
convert -n --target-image-opts a.qcow2 driver=raw,file.filename=sparse.raw
convert -n --target-image-opts -O raw a.qcow2 driver=raw,file.filename=sparse.raw
convert -n --target-image-opts a.qcow2 driver=qcow2,file.filename=nope
convert --image-opts driver=qcow2,file.filename=a.qcow2 o.raw
convert --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 o.raw
convert -r foo a.qcow2 o.raw
convert -r 10G a.qcow2 o.raw
convert a.qcow2 a.qcow2
convert -O qcow2 a.qcow2 a.qcow2
convert -O qcow2 d.raw nodir/x
convert -O raw d.raw nodir/x
convert -O raw d.raw sub
convert -O raw d.raw foo:bar
convert -O raw d.raw null-co://
convert -n -O raw a.raw null-co://
convert -O raw d.raw /dev/full
convert -n -O raw d.raw /dev/full
convert -U a.qcow2 o.raw
convert broken.qcow2 o.raw
convert short.qcow2 o.raw
"""

# Where ours knows better than to leave half an image behind, the message and status are still those users know.
CLEANED_UP = """
convert -t foo a.qcow2 o.raw
convert --bitmaps a.qcow2 o.raw
create -f raw -o preallocation=metadata x.raw 1M
convert -O qcow2 -B nope -F qcow2 ov.qcow2 o.qcow2
convert -O qcow2 -F qcow2 ov.qcow2 o.qcow2
"""


ALL = [script for table in (USAGE, CREATE, INFO, CHECK, COMPARE, MAP, RESIZE, CONVERT) for script in scripts(table)]


@pytest.mark.parametrize("script", ALL, ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


@pytest.mark.parametrize("script", scripts(CLEANED_UP), ids=named)
def test_a_failure_says_the_same_and_leaves_nothing(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
    assert set(mine.files) == set(files_for(script, template))


def test_progress_runs_from_nothing_to_all(template: Path, tmp_path: Path) -> None:
    line = "convert -p -O qcow2 ov.qcow2 o.qcow2"
    theirs, mine = run_both([line], ["a.qcow2", "ov.qcow2"], template, tmp_path)
    for said in (theirs.said[0], mine.said[0]):
        assert re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\n", said.out)
        assert said.out.startswith("    (0.00/100%)\r")
        assert said.out.endswith("    (100.00/100%)\r\n")
        assert said == Said(0, said.out, "")
