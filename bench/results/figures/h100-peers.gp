# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# gnuplot bench/results/figures/h100-peers.gp, from the root of the repository
set terminal svg size 900,680 font "sans-serif,14" background "white"
set output "bench/results/figures/h100-peers.svg"
# Of the table's lines ours / peer / eager / ratio / ratio: the name and the peer's graphed time over ours.
rows = "< awk '/^[a-z0-9_]+ .*[0-9]\\.[0-9]/ { line = $0; sub(/ +$/, \"\", line); gsub(/ \\[[^]]*\\]/, \"\", line); n = split(line, f, / +/); \
  k = 0; for (i = n; i > 0 && f[i] ~ /^[0-9]+\\.[0-9]+$/; --i) ++k; ratio = k == 5 ? f[n - 1] : f[n]; \
  name = \"\"; for (i = 1; i <= n - k; ++i) name = name (i > 1 ? \" \" : \"\") f[i]; gsub(/_/, \" \", name); sub(/batch 64$/, \"batch 64 (float states; theirs 16 bits)\", name); print name \"|\" ratio }' \
  bench/results/2026-11-22-h100-peers.md | grep -E \"training|decoding.*batch (1|64)[|]|blocks.*8 x 2048 forward [+]|ssd 8 x 2048.*N 128|ssd (1 x 65536|50 x 512).*[+]|8 x 2048 x 2048 bf16|1 x 5120 x 2048 bf16|conv1d .*4352|(add [+] rms|gated).*2048\" | tac"
set datafile separator "|"
set title "Time of the official packages over ours: H100, bfloat16, CUDA graphs, one run" offset screen -0.12,0
set style fill solid
set border 1
set xrange [0:5]
set xtics nomirror 1
set grid xtics lc rgb "#dddddd"
set ytics nomirror scale 0
set lmargin 50
set yrange [-0.7:*]
set key off
set arrow from 1, graph 0 to 1, graph 1 nohead lc rgb "#d62728" lw 2 front
plot rows using ($2 / 2):0:($2 / 2):(0.35):ytic(1) with boxxyerror lc rgb "#1f77b4", \
     rows using ($2 + 0.05):0:(sprintf("%.2f", $2)) with labels left
