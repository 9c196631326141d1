"""Pairs of a mathematical gold and a response, judged by hand.

One pair a line, `gold @ response`. Every pair is judged as a careful person
would, without asking the code. `_WRONG` holds, for each notation, answers that
are near to the gold or that a lax reader takes for it.
"""

import pytest

from agentflow_jax.agents.rewards import math_answer
from agentflow_jax.agents.rewards import text

_WRONG = r"""
\frac{1}{2^{99}} @ \frac{1}{2^{98}}
\frac{1}{2004!} @ \frac{1}{2006!}
1.6\times10^{-19} @ 9.1\times10^{-31}
1.6e-19 @ 1.7e-19
10^{20} @ 10^{20}+1
2^{100} @ 2^{100}+1
10^{-30} @ 0
0 @ 10^{-30}
1 @ 1.0000001
\sqrt{2} @ 1.4142
\frac{1}{3} @ 0.333334
\frac{1}{3} @ 0.33333
\pi @ \frac{22}{7}
\pi @ \frac{355}{113}
\pi @ 3.14
e @ 2.718
\sqrt{10^{20}+1} @ 10^{10}
\sqrt{1+10^{-40}} @ 1
1-\frac{1}{\mathrm{e}} @ 1+\frac{1}{\mathrm{e}}
1-\frac{1}{e} @ 1-e
e^{-1} @ e
1, 2, \dots, 10 @ 1, 4, \dots, 10
1, 2, \dots, 10 @ 1, 2, 10
1,2,3,\ldots,9 @ 1,2,3,\ldots,10
1,2,\dots @ 1,3,\dots
2,4,\dots,10 @ 2,4,\dots,12
1, 2, 4, \dots, 64 @ 1, 2, 3, \dots, 64
x+y=3 @ 3
5=3 @ 3
5=3 @ 7=2
2x=10 @ 10
10 @ 2x=10
5 @ 2+2=5
x=5 @ y=5
y=2x+1 @ y=2x
y=2x+1 @ x=2y+1
x^2+y^2=1 @ x^2+y^2=2
x^2=4 @ x=2
x<3 @ x>3
x<3 @ x\le 3
x<3 @ y<3
x<3 @ 3
1<x<3 @ 1<x\le3
(1,3) @ 1\le x<3
(0,1] @ [0,1]
(0,1) @ [0,1]
(0,1) @ \{0,1\}
(1,2) @ (2,1)
(1,2) @ \{1,2\}
[1,2] @ (1,2)
(1,2,3) @ (1,2)
\{1,2\} @ \{1,2,3\}
\{1,2\} @ \{1\}
1,2 @ 1,2,3
1,2 @ 1
1 @ 1,2
1 @ 1 or 2
1 or 2 @ 1 or 3
(-\infty,3) @ (3,\infty)
(-\infty,0)\cup(1,\infty) @ (-\infty,0)\cap(1,\infty)
(-\infty,0)\cup(1,\infty) @ (-\infty,0]\cup(1,\infty)
No @ on
no @ on
on @ no
No @ yes
Yes @ No
was @ saw
Evelyn @ Evelyne
even @ odd
HT @ TH
\text{No} @ \text{on}
101_2 @ 101
101 @ 101_2
101_2 @ 101_3
2516_8 @ 2516
x_1 @ x_2
x_1 @ x
x_{12} @ x_{1}2
a_n @ a_m
R @ r
A @ a
xy @ x+y
2x @ 2y
f(x)=x^2 @ f(x)=x^3
3 @ 3k
3 @ 3M
1.2 @ 1.2M
5 @ 5m
5 @ 5x
5000000 @ 5m
5\text{ cm} @ 5\text{ m}
5 km @ 5 miles
5\text{ m} @ 5\text{ m}^2
20^\circ\text{C} @ 20^\circ\text{F}
90^\circ @ 90\%
90^\circ @ 9
\sin 30 @ \sin 30^\circ
50\% @ 5
\frac12 @ 5\%
0.5 @ 0.5\%
50 @ 0.5
0.28 @ 28
28 @ 28/100
28\% @ 28/1000
3-5 @ 3–5
-2 @ 3–5
-2 @ 3 – 5
3–5 @ 3
2010–2015 @ -5
\frac{3}{2} @ 1 3/2
\frac{7}{2} @ 3 \frac{3}{2}
\frac{7}{2} @ 31/2
5 @ 2(3)
7 @ 3 4
12 @ 3 4
32 @ 3 2
9 @ 3 2
6 @ 5 squared
5 @ 5 squared
5 @ half of 5
5 @ at least 5
5 @ 5 or 6
5 @ The answer is 5 or 6
5 @ The answer is 6. The answer is 5.
6 @ It is 5. No wait, 6.
5 @ not 5
5 @ 5 dozen
5 @ 5 hundred
5 @ 5 million
5 @ 5!
5 @ -5
i @ -i
i @ 1
1+i @ 1-i
3+4i @ 5
e^{i\pi/2} @ -i
i^2 @ 1
\begin{pmatrix}1\\2\end{pmatrix} @ \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} @ \begin{pmatrix}1&2\\4&3\end{pmatrix}
\sqrt{x^2} @ x
|x| @ x
\frac{x}{y} @ \frac{y}{x}
(x+1)^2 @ x^2+1
\ln 2 @ \log_2 e
\log_2 8 @ 2
\log 100 @ \ln 100
\sin^{-1} x @ \frac{1}{\sin x}
x^{2y} @ x^2y
2^{10} @ 2^1 0
\frac{1}{2}x @ \frac{1}{2x}
\pm 2 @ 2
2 @ \pm 2
1 \pm \sqrt{2} @ 1+\sqrt{2}
\infty @ -\infty
\infty @ 10^{100}
\emptyset @ 0
\emptyset @ \{0\}
0.1\overline{6} @ 0.16
0.\overline{9} @ 0.9
1'234'567 @ 1234
1.234.567 @ 1.234567
1,234 @ 1.234
1234 @ 1,2,3,4
n! @ (n-1)!
\binom{10}{3} @ \binom{10}{4}
2^{2^{10}} @ 2^{2^{10}}+1
x \ge 3 @ x = 3
x\ne 3 @ x=3
\mathbb{R}\setminus\{0\} @ \mathbb{R}
\mathbb{Z} @ \mathbb{R}
x=1,y=2 @ x=2,y=1
(x,y)=(1,2) @ (2,1)
1:2 @ 2:1
5 @ A5
5 @ 5A
2 @ AZYUK2A
1 @ -[0,1)
\frac{1}{2} @ \frac{1}{2}\text{ million}
10 @ 10^{\circ}\text{C} or 50
100 @ 100_{10}
6 @ 6 more than 5
3.14159 @ 3.14158
7 @ 7 mod 3
\sqrt[3]{2} @ \sqrt{2}
\sqrt{2} @ \sqrt{3}
\frac{\sqrt{2}}{2} @ \sqrt{2}
\text{A} @ \text{B}
(A) @ (B)
A @ B
a,b @ b,c
10\% @ 10\text{ cm}
\lfloor x \rfloor @ x
2\pi @ 2
2\pi r @ \pi r^2
90 @ \frac{\pi}{2}
\cot x @ \tan x
\frac{d}{dx} @ \frac{1}{x}
\int_0^1 x dx @ \int_0^1 x^2 dx
f'(x) @ f(x)
x' @ x
\bar{x} @ x
\vec{a} @ a
1,000,000 @ 1,000
1{,}000 @ 1
10:30 @ 10:31
3^{2^{3}} @ (3^2)^3
-2^2 @ (-2)^2
1/2/3 @ 1/(2/3)
3 1/2 @ 31/2
1 2 @ 12
\frac12 @ \frac12\text{ million}
\frac{1}{2} @ half a million
12 @ 1 dozen
12 @ 12 dozen
5 @ 5th root of 7
5 @ 5 - 1
5 @ 5,6
5 @ x=5 or x=6
5 @ x=5, y=6
5 @ x\ne 5
5 @ x>5
5 @ x\approx 5.001
5 @ 5 \pm 1
5 @ [5,6]
5 @ \{5,6\}
5 @ $5$ and $6$
5 @ between 5 and 6
5 @ from 5 to 6
5 @ 5–6
5 @ 5-6
5 @ 5/6
5 @ 5:6
5 @ greater than 5
5 @ more than 5
5 @ 5 more than x
5 @ twice 5
5 @ 2 times 5
5 @ 5 times 2
5 @ negative 5
5 @ minus 5
5 @ The answer isn't 5.
5 @ The answer is 5^2
5 @ The answer is 5x
5 @ The answer is 5m
5 @ 5%-6%
5 @ 1, 2, 3, 4, 5
5 @ 5 (or 6)
5 @ 5 (maybe 6)
5 @ 5?? 6!!
5 @ 1+1=5
5 @ 1+1=5, so the answer is 6
6 @ 1+1=5, so the answer is 5 or 6
(1,2) @ (1,2),(3,4)
(1,2),(3,4) @ (1,3),(2,4)
(1,2),(3,4) @ (1,2)
1,2,3 @ 3,2,2
1,1,2 @ 1,2,2
\{1,2,3\} @ [1,2,3]
\{(1,2)\} @ \{(2,1)\}
\frac{a+b}{c} @ a+\frac{b}{c}
a+b/c @ (a+b)/c
2^{x+1} @ 2^x+1
x^{-1} @ -x
\sqrt{x+1} @ \sqrt{x}+1
\sqrt{x}+1 @ \sqrt{x+1}
\sin x @ \sin(-x)
\cos x @ \sin x
e^{x} @ e^{-x}
10^{-9} @ 10^{-10}
6.022\times10^{23} @ 6.023\times10^{23}
6.022\times10^{23} @ 6.022\times10^{24}
1.23456789 @ 1.23456788
0.1 @ 0.10000001
1000000 @ 1000001
10^{100} @ 10^{100}+1
\frac{10^{50}+1}{10^{50}} @ 1
\pi @ 3.141592
\pi @ 3.1415
2/3 @ 0.666666
2/3 @ 0.67
\frac{1}{7} @ 0.142858
\frac{10^9+1}{3} @ 333333333
100\% @ 100.5\%
1 @ 1\%
1 @ 10\%
200\% @ 20
y=x @ y=-x
y>x @ y<x
y \ge x @ y>x
x^2+y^2=4 @ x+y=2
x^2-y^2=0 @ x=y
x=y @ x^2=y^2
xy=0 @ x=0
a=b=c @ a=b
3x+2y=6 @ 3x-2y=6
x=1 @ x=-1
(-1,2] @ (-1,2)\cup(2,3]
[1,\infty) @ (1,\infty)
(-\infty,1)\cup(1,\infty) @ \mathbb{R}
(-\infty,\infty) @ x>1 \text{ and } x<3
x<1 \text{ or } x>3 @ 1<x<3
x<1 \text{ or } x>3 @ x<1, x>4
\mathbb{Q} @ \mathbb{R}
3 @ III
3 @ x_3
3 @ 3'
B @ 8
\text{Alice} @ \text{Bob}
\text{north} @ \text{thorn}
\text{true} @ \text{false}
True @ False
even @ neve
\text{A, B} @ \text{A, C}
AB @ AC
AB @ BA
\triangle ABC @ \triangle ABD
\text{Monday} @ \text{Tuesday}
3\text{ hours} @ 3\text{ minutes}
3 hours @ 3 min
3\text{ m/s} @ 3\text{ m}
3 \text{ km} @ 3000 \text{ km}
72^\circ @ 72\text{ rad}
45^\circ @ 45^\circ\text{C}
\$5 @ 5 cents
\int x+y @ \int x-y
3–5 @ 35
\sum_{n=1}^{10} n @ \sum_{n=1}^{11} n
\begin{cases}x&x>0\\-x&x<0\end{cases} @ \begin{cases}x&x>0\\x&x<0\end{cases}
1{,}234 @ 1.234
1,234.5 @ 1.2345
0,5 @ 5
1'000 @ 1
i @ j
2i @ 2
i @ e
e @ 2.71
\pi i @ \pi
\bar{z} @ z
z @ \bar{z}
\hat{x} @ x
|z| @ z
\|v\| @ v
A^T @ A
A^{-1} @ A
\ln x @ \log x
\log_3 x @ \log_2 x
\log x @ \log_{2} x
n @ n!
\binom{n}{k} @ \binom{k}{n}
\lceil x\rceil @ \lfloor x\rfloor
\max(a,b) @ \min(a,b)
f(2) @ f(3)
f(x) @ g(x)
f^{-1}(x) @ f(x)
5050 @ 1+2+\dots+99
1+2+\dots+10 @ 1+2+\dots+11
a_1,a_2,\dots,a_n @ a_1,a_3,\dots,a_n
x,y @ y,z
\alpha @ a
\infty @ 8
2 @ ²
x^2 @ x2
x_2 @ x2
4 @ 2²+1
½ @ 12
½ @ 1
3½ @ 3
3½ @ 31/2
3½ @ 3\cdot\frac12
-3½ @ -2.5
2-2p @ x-p = 2-2p
"""

_RIGHT = r"""
am+bn @ nb+ma
\frac{1}{2^{99}} @ 2^{-99}
\frac{1}{2004!} @ \frac{2005}{2005!}
1.6\times10^{-19} @ 1.6e-19
1.6\times10^{-19} @ 1.6 × 10⁻¹⁹
1.6\times10^{-19} @ 0.16\cdot 10^{-18}
\sqrt{2} @ 1.41421356
\frac{1}{3} @ 0.3333333
1-\frac{1}{\mathrm{e}} @ 1-\frac1e
1-\frac{1}{\mathrm{e}} @ 1-\frac{1}{\mathrm{e}}
1-\frac{1}{e} @ \frac{\mathrm{e}-1}{\mathrm{e}}
1-\frac{1}{e} @ 1 - e^{-1}
1-\frac{1}{e} @ 1-1/e
1, 2, \dots, 10 @ 1,2,3,\ldots,10
1, 2, \dots, 10 @ 1, 2, ..., 10
1, 2, \dots, 5 @ 1,2,3,4,5
1, 2, 4, \dots, 64 @ 1,2,4,\ldots,64
1,2,3,\dots @ 1,2,\dots
x+y=3 @ y=3-x
x+y=3 @ x + y = 3
x+y=3 @ 2x+2y=6
x+y=3 @ 3 = x+y
x=5 @ 5
5 @ x=5
5 @ 5=x
5 @ 2+3=5
5 @ x = 2+3 = 5
y=2x+1 @ 2x-y+1=0
y=2x+1 @ 2x + 1
y=\frac{x}{2} @ x=2y
x^2=4 @ x^2-4=0
f(x)=x^2 @ x^2
f(x)=x^2 @ f(x) = x\cdot x
A=\pi r^2 @ \pi r^2
x<3 @ 3>x
x<3 @ 2x<6
x<3 @ (-\infty,3)
-x > -3 @ x<3
1<x<3 @ 3>x>1
(1,3) @ 1<x<3
(1,3) @ x\in(1,3)
x\in(1,3) @ 1<x<3
1<x<3 @ x > 1 and x < 3
(-\infty,0)\cup(1,\infty) @ x<0 \text{ or } x>1
(-\infty,0)\cup(1,\infty) @ (1,\infty)\cup(-\infty,0)
(-\infty, 0) \cup (0, \infty) @ x \ne 0
\mathbb{R}\setminus\{0\} @ (-\infty,0)\cup(0,\infty)
\mathbb{R} @ (-\infty,\infty)
(0,1] @ \left(0, 1\right]
[-1,1] @ -1\le x\le 1
\{1,2\} @ 2, 1
\{1,2\} @ 1 and 2
1,2 @ 2,1
1,2 @ \{1,2\}
1,2 @ $1$ and $2$
1,2 @ x=1, x=2
1,2 @ x=1 or x=2
\{1,1,2\} @ \{1,2\}
(1,2) @ 1,2
(1,2) @ \left( 1, 2 \right)
(1,2) @ (x,y)=(1,2)
x=1,y=2 @ y=2, x=1
\pm 2 @ 2, -2
x = \pm 2 @ \{2,-2\}
1\pm\sqrt2 @ 1+\sqrt{2}, 1-\sqrt{2}
No @ no.
No @ \text{No}
\text{No} @ No
Yes @ yes
\text{Evelyn} @ Evelyn
\text{(A)} @ A
\text{A} @ A
xy @ yx
xyz @ zyx
2xy @ 2yx
ab @ ba
101_2 @ 101_{2}
x_1 @ x_{1}
x_1+x_2 @ x_2+x_1
90^\circ @ 90
90 @ 90°
90^\circ @ 90 degrees
90^{\circ} @ 90^\circ
\frac12 @ \sin 30^\circ
\frac12 @ \sin(\pi/6)
20^\circ\text{C} @ 20°C
27 @ 27\text{ miles}
27 @ 27 \text{ cm}^2
27 @ 27 cm
27 @ 27 km/h
27\text{ cm} @ 27\mathrm{~cm}
27 @ 27 apples
5 miles @ 5\text{ mi}
12\text{ cm}^2 @ 12 cm^2
12 @ 12 cm²
12 @ 12 square units
12 @ 12\text{ square units}
\$5 @ 5 dollars
5 @ \$5
5 @ $5
5 @ 5 dollars
50\% @ 50
50 @ 50\%
50\% @ \frac12
\frac12 @ 50\%
28\% @ 28 percent
28\% @ 28 pct
28\% @ 28 %
28\% @ 0.28
12.5\% @ 12.5
3½ @ \frac72
\frac72 @ 3½
\frac72 @ 3 1/2
\frac72 @ 3\frac{1}{2}
\frac72 @ 3\frac12
\frac72 @ 3.5
-\frac72 @ -3\frac12
\frac34 @ ¾
1234567 @ 1'234'567
1234567 @ 1,234,567
1234567 @ 1{,}234{,}567
1234567 @ 1 234 567
1234567 @ 1\,234\,567
1234567 @ 1.234.567
1000 @ 10^3
2000000 @ 2 million
2000000 @ 2\text{ million}
5 @ The answer is 5.
5 @ The answer is $5$.
5 @ 2+3=5, so the answer is 5.
5 @ Since $2+3=5$, the answer is $5$.
6 @ It is not 5 but 6
5 @ \(5\)
5 @ $$5$$
9 @ Answer \[ 9 \]
5 @ **5**
5 @ `5`
10 @ five plus five is 10
10 @ ten
i @ \mathrm{i}
i @ \sqrt{-1}
-1 @ i^2
3+4i @ 4i+3
3+4i @ 3+4\mathrm{i}
e^{i\pi} @ -1
\frac{1}{1+i} @ \frac{1-i}{2}
\begin{pmatrix}1&2\\3&4\end{pmatrix} @ \begin{bmatrix}1&2\\3&4\end{bmatrix}
\begin{pmatrix}1\\2\end{pmatrix} @ \left(\begin{matrix}1\\2\end{matrix}\right)
|x| @ \sqrt{x^2}
(x+1)^2 @ x^2+2x+1
\frac{x^2-1}{x-1} @ x+1
\sin^2 x+\cos^2 x @ 1
\sin 2x @ 2\sin x\cos x
\tan x @ \frac{\sin x}{\cos x}
\ln 8 @ 3\ln 2
\log_2 8 @ 3
\log_{10} 100 @ 2
\log 4 @ 2\log 2
\ln x^2 @ 2\ln x
2^{x+1} @ 2\cdot 2^x
\sqrt{12} @ 2\sqrt3
\sqrt{3+2\sqrt{2}} @ 1+\sqrt{2}
\sqrt[3]{8} @ 2
\frac{1}{\sqrt2} @ \frac{\sqrt2}{2}
\frac{\pi}{4} @ \arctan 1
\frac{1+\sqrt5}{2} @ 0.5+\frac{\sqrt 5}{2}
\binom{10}{3} @ 120
10! @ 3628800
n! @ n\cdot(n-1)!
\binom{n}{2} @ \frac{n(n-1)}{2}
0.\overline{3} @ \frac13
0.1\overline{6} @ 1/6
0.\overline{9} @ 1
\infty @ ∞
\emptyset @ \varnothing
\emptyset @ \{\}
2\pi @ 2π
2\pi r @ 2 \pi r
\pi r^2 @ πr²
x^2 @ x²
\sqrt{3} @ √3
x_1 @ x₁
3 @ \frac{6}{2}
3 @ 6/2
3 @ 6÷2
6 @ 2×3
6 @ 2·3
6 @ 2(3)
-5 @ −5
-5 @ –5
x=-5 @ x = –5
.5 @ 0.5
5.0 @ 5
007 @ 7
1:2 @ \frac12
\frac{h(a+b)}{2} @ \frac{(a+b)h}{2}
a^2-b^2 @ (a-b)(a+b)
\lfloor 3.7 \rfloor @ 3
\max(1,2) @ 2
-\frac{1}{2} @ \frac{-1}{2}
-\frac{1}{2} @ -0.5
14{,}916 @ 14916
(3, \frac{\pi}{2}) @ \left( 3, \frac{\pi}{2} \right)
1/3 @ \cfrac{1}{3}
1/3 @ \frac{1}{3} \text{meters}
1/3 @ k = \frac{1}{3}
12,13 @ 12\text{ and }13
\sqrt{50} @ \sqrt{50}\approx 7.07
7.07 @ x\approx 7.07
e^x @ \exp(x)
e^{x} @ \mathrm{e}^{x}
\frac{2}{3}\pi @ \frac{2\pi}{3}
(2,3) @ (2;3)
x \in \{1,2\} @ 1,2
\text{even} @ even
3^{2^{3}} @ 6561
-2^2 @ -4
\overline{AB} @ \overline{AB}
\int_0^1 x dx @ \int_0^1 x dx
n=12 @ 12
\left\{1,2\right\} @ \{2, 1\}
\alpha+\beta @ \beta+\alpha
5\sqrt{2}\text{ cm} @ 5\sqrt2
\dfrac{3}{4} @ \tfrac34
2^{n} @ 2^n
3 1/2 @ 7/2
12 @ 12 (twelve)
5 @ 5 (five)
5 @ It's 5.
5 @ x equals 5
5 @ The final answer is: 5
5 @ So the answer is $\frac{10}{2}$.
5 @ The area is 5 cm².
5 @ 5 square meters
5 @ There are 5 ways.
5 @ approximately 5
5 @ x = 5, not 6
5 @ = 5
5 @ 5.
5 @ (5)
5 @ {5}
5 @ [5]
\frac{\sqrt{3}}{3} @ \sqrt3/3
\frac{\sqrt{3}}{3} @ sqrt(3)/3
\frac{\sqrt{3}}{3} @ √3/3
\frac{\sqrt{3}}{3} @ 1/sqrt(3)
(1,2),(3,4) @ (3,4),(1,2)
(1,2),(3,4) @ (1,2) and (3,4)
\{(1,2),(3,4)\} @ (1,2), (3,4)
x^2+2x+1=0 @ (x+1)^2=0
y-1=2(x-3) @ y=2x-5
y=2x-5 @ 2x-y=5
\frac{x^2}{4}+\frac{y^2}{9}=1 @ 9x^2+4y^2=36
\frac{x}{2}+\frac{y}{3}=1 @ 3x+2y-6=0
xy=2 @ y=\frac{2}{x}
y \le 2x @ 2x-y\ge0
6.022\times10^{23} @ 6.022e23
6.022\times10^{23} @ 6.022*10^23
6.022\times10^{23} @ 602200000000000000000000
10^{-9} @ 1e-9
10^{-9} @ 0.000000001
\frac{1}{7} @ 0.142857
\frac{1}{7} @ 0.142857142857
2/3 @ 0.666667
2/3 @ 0.\overline{6}
\pi @ 3.14159
\pi @ 3.14159265
3.14159 @ \pi
\sqrt{2}+1 @ 2.414214
(-1,2] @ -1 < x \leq 2
[1,\infty) @ x\geq1
[1,\infty) @ [1, +\infty)
x\in[1,\infty) @ x\ge 1
\mathbb{R} @ ℝ
\{x \mid x > 3\} @ \{x \mid x > 3\}
(-\infty,1)\cup(3,\infty) @ x<1 or x>3
3\text{ hours} @ 3 hours
3\text{ hours} @ 3
3\text{ km/h} @ 3 km/h
3\text{ m/s} @ 3 m/s
5\text{ m} @ 5 \mathrm{m}
72^\circ @ 72 degrees
\$12.50 @ 12.5
\$12.50 @ \$12.5
12.50 @ $12.50
1.5 million @ 1500000
A^T @ A^{T}
\text{Alice} @ Alice.
\text{True} @ true
AB @ AB
\log_2 x @ \frac{\ln x}{\ln 2}
\log_{10} 1000 @ 3
\lg 1000 @ 3
e^{2\pi i/3} @ -\frac12+\frac{\sqrt3}{2}i
1+2i @ 2i+1
\cos 60^\circ @ 0.5
\tan\frac{\pi}{4} @ 1
\sin^{-1}(1) @ \frac{\pi}{2}
\arcsin 1 @ \pi/2
5050 @ \frac{100\cdot101}{2}
\frac{n(n+1)}{2} @ \frac{n^2+n}{2}
2^{10}-1 @ 1023
(a+b)^3 @ a^3+3a^2b+3ab^2+b^3
\frac{a}{b}+\frac{c}{d} @ \frac{ad+bc}{bd}
\sqrt{x}\sqrt{x} @ x
\frac{-b\pm\sqrt{b^2-4ac}}{2a} @ \frac{-b\pm\sqrt{b^2-4ac}}{2a}
x=\frac{-1\pm\sqrt5}{2} @ \frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}
-3½ @ -3.5
3½ @ 3.5
2 ½ @ 2.5
½ @ 0.5
x½ @ x½
4! @ 24
\binom{5}{2} @ \frac{5!}{2!3!}
\begin{pmatrix}\frac12\\0\end{pmatrix} @ \begin{pmatrix}0.5\\0\end{pmatrix}
\begin{vmatrix}1&2\\3&4\end{vmatrix} @ -2
\overline{z} @ \overline{z}
60\% @ 60 percent
60\% @ \frac{3}{5}
11:30 @ 11:30
3:4 @ 3/4
1, 3, 5, \dots, 99 @ 1,3,5,...,99
2x + 3y @ 3y + 2x
\boxed{5} @ 5
$\frac12$ @ \(\frac{1}{2}\)
x^{2} @ x**2
1024 @ 2**10
\theta @ θ
2\sqrt{2} @ 2√2
2\sqrt{2} @ 2*sqrt(2)
2\sqrt{2} @ sqrt(8)
\pi/2 @ pi/2
3\pi @ 3pi
3\pi @ 3*pi
e^2 @ exp(2)
x \cdot y @ x*y
1 - 1/e @ 1-1/e
(x-1)(x+1) @ x^2 - 1
\sqrt{2} @ 1.414214
"""


def _pairs(table):
  return [tuple(line.split(' @ ')) for line in table.strip().splitlines()]


def _same(gold, said):
  said = text.extract(said)
  # As in `symbolic`, which needs no child process for equal text.
  return text.close_up(gold) == text.close_up(said) or (math_answer.same(gold, said))


@pytest.mark.parametrize(('gold', 'said'), _pairs(_WRONG))
def test_wrong_answers(gold, said):
  assert not _same(gold, said)


@pytest.mark.parametrize(('gold', 'said'), _pairs(_RIGHT))
def test_right_answers(gold, said):
  assert _same(gold, said)


def test_every_gold_equals_itself_in_a_box():
  golds = sorted({g for g, _ in _pairs(_RIGHT)})
  assert [g for g in golds if not _same(g, rf'So $\boxed{{{g} }}$.')] == []
