# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# gnuplot bench/results/figures/h100-learning.gp, from the root of the repository
set terminal svg size 900,560 font "sans-serif,14" background "white"
set output "bench/results/figures/h100-learning.svg"
set datafile separator ","
data = "bench/results/2026-11-22-h100-learning.csv"
curve(mixer) = sprintf("< awk -F, '$1 == \"%s\"' %s", mixer, data)
set grid lc rgb "#dddddd"
set border 3
set tics nomirror
set lmargin 11
set multiplot layout 2,2 title "The same 200 steps on the CPU and on the GPU"
array mixers[2] = ["mamba2", "diff_mamba2"]
array names[2] = ["Mamba-2", "Diff-Mamba-2"]
do for [i = 1:2] {
  set title names[i]
  set ylabel (i == 1 ? "training loss, nats" : "")
  plot curve(mixers[i]) using 2:3 with lines lw 5 lc rgb "#bbbbbb" title "CPU, float", \
       curve(mixers[i]) using 2:4 with lines lw 2 lc rgb "#1f77b4" title "GPU, float", \
       curve(mixers[i]) using 2:5 with lines lw 1 lc rgb "#d62728" title "GPU, bfloat16"
}
set logscale y
set yrange [1e-6:1e-1]
set format y "10^{%L}"
set xlabel "step"
unset title
do for [i = 1:2] {
  set ylabel (i == 1 ? "relative difference to the CPU" : "")
  plot curve(mixers[i]) using 2:(abs($5 - $3) / $3) with points pt 7 ps 0.3 lc rgb "#d62728" title "bfloat16", \
       0.01 with lines dt 2 lc rgb "#888888" title "1 per cent"
}
unset multiplot
