module hyprstream.io/local/contour

go 1.26.0

tool (
	github.com/projectcontour/contour/cmd/contour
)

require github.com/projectcontour/contour v1.33.8
